"""Fixtures of the tests that need pdserve installed in a cluster."""

from tests.support.installed import cluster_under_test, installed, shop_service

__all__ = ["cluster_under_test", "installed", "shop_service"]
