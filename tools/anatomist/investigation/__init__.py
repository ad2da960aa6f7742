"""Investigations: question, hypotheses, runs, findings and checks as a record that a person can read."""
