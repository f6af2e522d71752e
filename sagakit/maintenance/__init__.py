"""What keeps every saga moving whatever fails: leases, timers, lost messages, lost workers."""
