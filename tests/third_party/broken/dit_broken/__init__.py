"""Plugins that can't be used."""
