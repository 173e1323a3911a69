"""Trace a model, plan what goes, cut it out of a copy."""
