//! A small web server that answers with its name and asks its siblings through DNS: the demo application.

fn main() {}
