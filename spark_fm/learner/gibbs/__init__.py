"""Bayesian training of factorization machines by blocked Gibbs sampling."""
