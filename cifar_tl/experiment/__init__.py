"""Stages, the run's folder, results, pictures; nothing here prints or exits."""
