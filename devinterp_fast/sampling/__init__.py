"""Chains of a tempered, localized posterior: data and batches, objective, engines, runs."""
