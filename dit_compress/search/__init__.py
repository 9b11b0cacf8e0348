"""Which units stay: problems, importance, budgets, trials."""
