"""Choice of the units that stay: problems, importance, budgets, trials."""
