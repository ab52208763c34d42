"""Every mutation, written down before it acts: run again or taken back after a crash, paced for each principal."""
