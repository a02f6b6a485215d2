"""Estimators on the draws of a localized posterior."""
