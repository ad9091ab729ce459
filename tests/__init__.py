"""Tests of gshw and rtl_gen."""
