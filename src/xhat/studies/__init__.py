"""Several trainings compared: what a study is, how it runs, and which differences are more than chance."""
