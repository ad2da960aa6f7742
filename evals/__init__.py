"""Does the pack help? Trigger queries, tasks whose answers are computed from models, and a grader without a model."""
