"""Bridges: topics past one host, over a broker that exists."""
