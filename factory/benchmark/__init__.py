"""Questions with checkable answers: what steering does to right answers, by paired test."""
