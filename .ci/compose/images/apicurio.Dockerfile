# Stands in for apicurio/apicurio-registry where no registry of images can be reached: the same archive.
FROM oktawatch-test/base
COPY deployments /deployments
RUN useradd -m -u 1001 registry
USER 1001
EXPOSE 8080
CMD ["sh", "-c", "exec java -Xmx384m -XX:+UseSerialGC -Dquarkus.http.host=0.0.0.0 -jar /deployments/*-runner.jar"]
