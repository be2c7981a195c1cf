"""Requests: one body for both legs, with the prefill's host and a room of the attempt's own."""

from pdserve.engines.room_flow import RoomFlow

FLOW = RoomFlow()
