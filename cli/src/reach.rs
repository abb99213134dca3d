//! The control planes that a command asks, and the credential that it shows them.

use std::path::PathBuf;

use api::Operator;
use identity::Identity;

use crate::{exit::Failure, texts};

/// The addresses of the control planes, and the credential of the person who asks them.
pub(crate) struct Reach {
    pub(crate) control_planes: Vec<String>,
    pub(crate) identity: Option<PathBuf>,
    /// Folder of the running world.
    pub(crate) state_dir: PathBuf,
}

impl Reach {
    /// The roots that the caller trusts.
    pub(crate) fn trust(&self) -> Result<PathBuf, Failure> {
        let folder = match &self.identity {
            Some(folder) => folder.clone(),
            None => world::find(&self.state_dir)?.operator,
        };
        Ok(identity::files::Files::in_folder(&folder).trust)
    }

    /// A client of the named control planes, or else of the running world's.
    pub(crate) fn operator(&self) -> Result<Operator, Failure> {
        let mut folder = self.identity.clone();
        let urls = if self.control_planes.is_empty() {
            let record = world::find(&self.state_dir)?;
            folder.get_or_insert(record.operator);
            record.control_planes
        } else {
            self.control_planes.clone()
        };
        let files = folder.map(|folder| identity::files::Files::in_folder(&folder));
        let identity = Identity::load_if(files, daemon::clock::now)
            .map_err(|error| Failure::failed(texts::no_credential(error)))?;
        if let Some(own) = identity.as_ref().map(|identity| identity.own())
            && own.until <= daemon::clock::now()
        {
            return Err(Failure::failed(texts::credential_expired(
                own.id.role.name(),
                own.until,
            )));
        }
        Ok(Operator::at(urls).with_identity(identity))
    }
}
