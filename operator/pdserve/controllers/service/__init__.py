"""Reconciles PDServices: their ScenarioGroups, gateways, credentials and route tables."""
