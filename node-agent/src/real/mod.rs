//! The facilities as they are on a real node: runtime, image store, network.

mod containers;
mod images;
mod network;

pub use containers::RuntimeContainers;
pub use images::StoreImages;
pub use network::NodeNetwork;
