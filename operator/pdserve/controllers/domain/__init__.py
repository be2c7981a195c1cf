"""Reconciles RoCEDomains: their statuses."""
