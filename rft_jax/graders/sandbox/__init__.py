"""Sandbox: runs the code of users and of the policy in isolated worker processes."""
