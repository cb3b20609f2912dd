"""The objective: a sum of terms over one shared draw, when each counts, and how much."""
