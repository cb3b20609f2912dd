"""The commands of the command line: here their arguments, a file each, which are read without torch."""
