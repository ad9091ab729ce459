"""Tests of the RTL components in Amaranth's simulator."""
