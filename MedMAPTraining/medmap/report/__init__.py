"""What people look at: pictures of single cases, tables and figures of whole experiments."""
