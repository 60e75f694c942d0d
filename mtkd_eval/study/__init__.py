"""Studies: many trainings from one grid file, resumable, and what their figures say."""
