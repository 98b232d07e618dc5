//! The door for other servers: only who shows a server's certificate of this cluster is heard.

use std::pin::Pin;
use std::sync::OnceLock;

use coracle_protocol::MAX_MESSAGE_BYTES;
use coracle_protocol::v1::servers_server::{Servers, ServersServer};
use coracle_protocol::v1::{BeatsAnswer, BeatsReport, Empty, LogRelay, Slices, TunnelDown, Words};
use coracle_raft::Raft;
use std::sync::Arc;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::peers::{from_wire, to_wire};
use crate::pki::SERVERS;
use crate::sessions::{Sessions, TunnelError, holder_of};

/// What answers other servers. The log may not be open yet: they come again.
#[derive(Clone)]
pub(crate) struct ServerDoor {
    pub raft: Arc<OnceLock<Raft>>,
    pub sessions: Arc<OnceLock<Sessions>>,
}

impl ServerDoor {
    pub fn service(&self) -> ServersServer<Self> {
        ServersServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

fn check<T>(request: &Request<T>) -> Result<(), Status> {
    let (_, group) = holder_of(request)?;
    if group == SERVERS { Ok(()) } else { Err(Status::permission_denied("this is not the certificate of a server")) }
}

fn early() -> Status {
    Status::unavailable("this server is still starting")
}

#[tonic::async_trait]
impl Servers for ServerDoor {
    type LogsStream = Pin<Box<dyn Stream<Item = Result<TunnelDown, Status>> + Send>>;

    async fn ask(&self, request: Request<Words>) -> Result<Response<Words>, Status> {
        check(&request)?;
        let raft = self.raft.get().ok_or_else(early)?;
        let answer = raft.answer(&from_wire(request.into_inner())).await;
        Ok(Response::new(to_wire(&answer)))
    }

    async fn beats(&self, request: Request<BeatsReport>) -> Result<Response<BeatsAnswer>, Status> {
        check(&request)?;
        let sessions = self.sessions.get().ok_or_else(early)?;
        let raft = self.raft.get().ok_or_else(early)?;
        let answer = crate::beats::hear(raft, sessions, request.into_inner()).await;
        answer.map(Response::new).ok_or_else(|| Status::failed_precondition("this server does not lead"))
    }

    async fn settle(&self, request: Request<Slices>) -> Result<Response<Empty>, Status> {
        check(&request)?;
        let sessions = self.sessions.get().ok_or_else(early)?;
        sessions.settle(&request.into_inner()).await;
        Ok(Response::new(Empty {}))
    }

    async fn logs(&self, request: Request<LogRelay>) -> Result<Response<Self::LogsStream>, Status> {
        check(&request)?;
        let sessions = self.sessions.get().ok_or_else(early)?;
        let LogRelay { node, request } = request.into_inner();
        let chunks = sessions.logs(&node, request.unwrap_or_default()).await.map_err(|error| match error {
            TunnelError::Away(_) => Status::not_found(error.to_string()),
            TunnelError::Silent(_) => Status::unavailable(error.to_string()),
        })?;
        let chunks = tokio_stream::wrappers::ReceiverStream::new(chunks).map(|chunk| match chunk {
            Ok(data) => Ok(TunnelDown { data: data.to_vec() }),
            Err(reason) => Err(Status::aborted(reason)),
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}
