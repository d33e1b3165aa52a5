"""Runs code of users and policies in isolated processes."""
