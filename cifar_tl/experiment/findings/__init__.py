"""What came out: for people, for programs, in pictures."""
