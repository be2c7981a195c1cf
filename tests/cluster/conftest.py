"""Fixtures of the tests that need pdserve installed in a cluster."""

from tests.support.installed import installed, shop_service

__all__ = ["installed", "shop_service"]
