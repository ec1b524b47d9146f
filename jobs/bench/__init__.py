"""`bloodcell bench`: how fast each part is, beside what one would use instead."""
