"""Needs what nobody has."""

import no_such_package

NEEDED = no_such_package
