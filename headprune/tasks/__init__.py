"""What "better" means: a row a task and a metric in ``catalogue``, and a file a family of tasks."""
