"""What compares a student's outputs with a teacher's."""
