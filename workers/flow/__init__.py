"""The flow: chords that can be repaired, the guard that repairs them, and how a run is submitted."""
