"""What a school learns from: where pictures lie, how they become pixels, and what is said about them."""
