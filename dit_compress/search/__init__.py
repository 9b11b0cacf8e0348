"""Units that stay: problems, importance, budgets, trials."""
