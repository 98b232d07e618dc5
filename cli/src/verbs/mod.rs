//! One file a verb.

pub mod apply;
pub mod backup;
pub mod cordon;
pub mod delete;
pub mod describe;
pub mod doctor;
pub mod down;
pub mod drain;
pub mod get;
pub mod image;
pub mod join;
pub mod kubeconfig;
pub mod leave;
pub mod logs;
pub mod rotate;
pub mod scale;
pub mod status;
pub mod token;
pub mod up;
pub mod version;
