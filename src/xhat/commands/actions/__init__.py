"""What the commands do, a file each: imported, with torch, once the arguments are known to be sound."""
