"""What training leaves behind: the folder of a run, and the object that reads it."""
