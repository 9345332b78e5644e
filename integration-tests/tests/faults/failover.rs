//! The primary dies and a standby that lagged takes over.
