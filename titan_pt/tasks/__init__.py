"""What a policy is asked, and what an answer is worth."""
