"""Files that are whole or not there, that say whether they are damaged, and that replace only what is ours."""
