"""Scores of variants: read from benchmark files or measured here, compared in pairs, held against policies.

Nothing here knows the database: the modules take and return plain values.
"""
