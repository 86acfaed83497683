"""Landscapes: small models of what a run found, on which searches are compared without models."""
