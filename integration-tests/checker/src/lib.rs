//! Judges a recorded history of reads and writes.
