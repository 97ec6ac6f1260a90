"""Results as values: what an attribution holds, how it is saved and loaded. Views are registered from above."""
