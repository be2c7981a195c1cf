"""Reconciles ScenarioGroups: observe, plan, carry out, report."""
