"""Fitnesses: how good a merged model is."""
