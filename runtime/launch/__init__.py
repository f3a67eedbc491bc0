"""Running a plan: processes, progress and outcomes."""
